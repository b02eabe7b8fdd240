"""Tables bigger than memory: where rows come from, what is done with them in one pass, and where they go.

    files, kinds, schema, text, keys     what there is: files and folders, kinds of tables, types of columns
    pieces, sources/                     divide: what a source of rows is, and those that there are
    running, numbered                    distribute: the run in the driver, on `call.Call`
    plan, steps, draw, work, poison      execute: a piece in a worker, all steps in one pass, and rows that fail
    parts, places, together, merging     aggregate: what workers write, and what it must have in common
    commit, writing                      ... into a folder that appears whole or not at all
    stores, manifests, writers, sweeping ... or into a store, where a manifest says what is there

What users write, `scan` and `Dataset`, is in `workloads`.
"""
