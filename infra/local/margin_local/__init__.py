"""Runs the engine on one machine: embedded stores, an HTTP server, the schedules, and a demo."""
