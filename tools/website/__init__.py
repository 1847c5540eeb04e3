"""Builds the documentation site: docs/ and the reference of API and commands, in build/site."""
