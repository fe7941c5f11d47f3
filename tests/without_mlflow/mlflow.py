"""MLflow, if it were not installed: DeepSpeed imports it at each start, its launcher's too, which takes longer than torch does.

First on the PYTHONPATH of whatever tests start (conftest.py); the test of MLflow itself leaves it out.
"""

raise ImportError("left out in tests")
