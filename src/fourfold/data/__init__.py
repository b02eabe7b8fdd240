"""Tables bigger than memory: `scan` says where rows come from, a `Dataset` what is done with them, and a run does it.

files, kinds, schema, text, keys     what there is: files and folders, kinds of tables, types of columns
pieces, sources/                     divide: what a source of rows is, and those that there are
steps, draw, plan                    what is done with a batch, and all of it in one pass
work, poison                         execute: a piece in a worker, and what becomes of rows that fail
running, numbered                    the run in the driver, on `call.Call`
scan, dataset                        what users write
"""
