"""Implement the condensation methods: each is a folder with a `spec.py` and a `method.py`; see `docs/add-a-method.md`.

:mod:`cafe_core.methods.registry` finds them. The classes to derive from are in :mod:`cafe_core.spec.method` and
:mod:`cafe_core.algorithm.method`.
"""
