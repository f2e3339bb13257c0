"""Embedding of data sets: one pipeline for a local run and a run on a Ray cluster.

::

    request      a job as requested: input files, output, bad rows
    formats      rows and vectors in Parquet, JSON lines and npy
    units        units of work, cut from the input files, and their rows as chunks
    readers      the input files as units, and a unit as chunks
    parts        embedded rows of a unit in OUTPUT.parts/, and the mark that the unit is done
    checkpoint   OUTPUT.parts/ itself: its lock and its manifest
    assembly     the output, put together from the parts
    pipeline     a job: cut, read, embed, write parts, mark, assemble

What embeds is passed in, so nothing here depends on servers. The units depend only on the input
files, so the output is the same whichever executor embeds them. Without PyArrow, only ``request``,
``formats`` and ``units`` can be imported.
"""
