"""MLflow, if it were not installed: DeepSpeed imports it at each start, its launcher's too, which takes longer than torch does.

First on the PYTHONPATH of the commands that tests start (tiny.environment); the test of MLflow itself leaves it out.
"""

raise ImportError("left out in tests")
