"""Check whether a device computes what the CPU computes: ``src/tools/check_device.py``, docs/ACCELERATORS.md.

Seven levels, from seconds to minutes, each in a module: ``settings``, ``probe``, ``operators``, ``layers``, ``steps``,
``repeat`` and ``processes``. Each returns a ``results.Level``; ``scenario`` builds the training that they look at.
"""
