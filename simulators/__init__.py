"""Stand-ins for learning platforms, for tests and for `make run`.

Nothing here imports the product, and nothing here is shipped in the wheel. Each package
speaks one platform's wire protocol as a real server of that platform does, mistakes included.
"""
