"""Embedding of data sets: one pipeline for a local run and a run on a Ray cluster.

::

    input_files  which files are read
    readers      the files as units of work, and a unit as chunks of rows
    parts        embedded rows of a unit in OUTPUT.parts/, and the mark that the unit is done
    assembly     the output, put together from the parts
    checkpoint   OUTPUT.parts/ itself: its lock and its manifest
    tables       helpers for PyArrow and JSON
    pipeline     a job: cut, read, embed, write parts, mark, assemble

What embeds is passed in, so nothing here depends on servers. The units depend only on the input
files, so the output is the same whichever executor embeds them.
"""
