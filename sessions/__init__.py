"""Talking to platforms: sessions, their transitions, HTTP."""
