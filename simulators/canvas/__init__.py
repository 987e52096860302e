"""A simulated Canvas: OAuth, REST, GraphQL, images on another origin, and every way it fails.

`python -m simulators.canvas` serves it; tests run it in their own process with
`simulators.canvas.app.running`. Everything it says comes from Canvas's public source and
documentation, as gathered in the facts on Canvas; nothing here was compared with a real
installation, so a test that passes against it has passed against a simulator.

Where releases differ, or where it is unknown what Canvas does, `profiles.py` has a switch.
"""
