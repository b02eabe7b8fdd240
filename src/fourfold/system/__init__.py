"""What a process has from its machine and its Python.

machine.py      cores, memory and threads, and where each figure comes from
devices.py      which GPUs a task has
environment.py  which variables worker processes get
imports.py      what work has to import, and who imports it
interrupts.py   Ctrl-C where it does no harm
seams.py        where a test makes a system call fail
"""
