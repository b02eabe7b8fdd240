"""Tables bigger than memory: where rows come from, what is done with them in one pass, and where they go.

    files, kinds, schema, text, keys     what there is: files and folders, kinds of tables, types of columns
    pieces, sources/                     divide: what a source of rows is, and those that there are
    running, numbered                    distribute: the run in the driver, on `call.Call`
    plan, steps, draw, work, poison      execute: a piece in a worker, all steps in one pass, and rows that fail
    parts, commit, writing               aggregate: files of a folder that appears whole or not at all

What users write, `scan` and `Dataset`, is in `workloads`.
"""
