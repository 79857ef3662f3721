"""Define every field of a job once: specs, their resolution, and estimates. This package does not import torch.

The REST API, the CLI, the workers and the documentation take their fields, defaults, bounds and descriptions from here.
A spec has two forms, which use the same classes:

* as *sent*: as the user wrote it; fields whose default depends on the method, on ipc or on the data may be absent;
* as *resolved* by :mod:`cafe_core.spec.resolution`: every default written out. Only a resolved spec is stored or run.

Symbols as in the method: K classes, N real images per class and outer step, ipc synthetic images per class.
"""
