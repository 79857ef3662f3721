"""Every field of a job, defined once: specs, their resolution, and estimates. Nothing here imports torch.

The REST API, the CLI, the workers and the documentation take their fields, defaults, bounds and descriptions from here.
A spec has two forms, of the same classes:

* as *sent*: what a user wrote; fields whose default depends on the method, on ipc or on the data may be absent;
* as *resolved* by :mod:`cafe_core.spec.resolution`: every default written out. Only a resolved spec is stored or run.

Symbols as in the method: K classes, N real images per class and outer step, ipc synthetic images per class.
"""
