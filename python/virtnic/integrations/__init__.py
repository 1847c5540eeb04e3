"""Adapters that let other libraries use virtnic, one module for each, each with its own extra."""
