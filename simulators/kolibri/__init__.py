"""A simulated Kolibri, and the means to stand up a real one with the same content.

`python -m simulators.kolibri` serves the simulator; `python -m simulators.kolibri.real` installs,
seeds and starts a real Kolibri. Both hold the data of `population.py`, and
`tests/e2e/test_simulated_kolibri_equals_real.py` compares their answers field by field.

This file imports nothing, so that `population.py` and `real_seed.py` also load inside
Kolibri's own virtual environment.
"""
