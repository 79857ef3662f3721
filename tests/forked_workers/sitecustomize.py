"""Let Ray start its workers as forks of a template.

Python imports this module when it starts, if this directory is on PYTHONPATH. Ray starts a worker with
`python setup_worker.py default_worker.py …`. Such a process asks the template for the worker, and exits.
"""

import os
import sys

if [argument.rpartition("/")[2] for argument in sys.orig_argv[1:3]] == ["setup_worker.py", "default_worker.py"]:
    import template

    template.request(os.environ[template.ADDRESS], sys.orig_argv[2:])
    os._exit(0)
