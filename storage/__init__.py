"""Everything kept: finished work, the tables of results, data and its division, the run history.

artifacts.py   folders named by task key, written whole or not at all, checked when read
upstream.py    where else artifacts are: what a folder fetches from and hands on to
remote.py      artifacts at an URI, payload first and the mark of completeness last
working.py     the local folder through which a store at an URI is worked on, kept in step with it
tables.py      Parquet schemas, part files named by task key, views that join them
queries.py     questions in SQL, answered by DuckDB: only reading, shut off from the world
exports.py     answers as CSV, JSON or Parquet
links.py       links that lead out of a store
census.py      what lies in a store, whole or not, and how a piece of it is removed
datasets.py    name -> arrays, class count and content hash
splits.py      seeded, disjoint data roles of a dataset
card.py        what a split holds, counted
halves.py      which half of a pool each shadow model trains on
given.py       the roles a column of a dataset gives
invariants.py  the checks that no row leaked from one role into another
tracking.py    the tables' rows as runs in MLflow, rebuildable from them
runs.py        the run history asked: filters in plain columns
mirror.py      rows on their way to MLflow while a run goes on, and what has arrived
"""
