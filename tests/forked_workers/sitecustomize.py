"""Let Ray start its workers as forks of a template.

Python imports this module when it starts, if this directory is on PYTHONPATH. Ray starts a worker with
`python default_worker.py …`, or with `python setup_worker.py default_worker.py …` if the job has a runtime environment. Such a
process asks the template for the worker, and exits.
"""

import os
import sys

arguments = sys.orig_argv[1:]
if arguments and arguments[0].endswith("/ray/_private/workers/setup_worker.py"):
    arguments = arguments[1:]
if arguments and arguments[0].endswith("/ray/_private/workers/default_worker.py"):
    import template

    try:
        template.request(os.environ[template.ADDRESS], arguments)
    except BaseException as error:
        print(f"the template of workers did not answer: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
