"""The deployed application: settings, assembly, HTTP routes and the command line."""
