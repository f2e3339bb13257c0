"""Embedding of data sets: Parquet, JSON lines or a folder in; vectors out, and no row lost.

::

    readers  ->  feed  ->  parts in OUT.parts/  ->  OUT
    (chunks of rows)  (vectors beside them)  (a part is there whole or not at all)

``job.run`` joins them. What embeds is handed in, so that nothing here knows of servers.
"""
