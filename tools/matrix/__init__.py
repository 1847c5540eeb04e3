"""Test results for every QEMU and Python in one table: ``make matrix``.

``qemus`` brings the QEMUs of several Debian releases, ``pythons`` the interpreters that
are there and one more from Debian, ``rows`` runs pytest and lays out the table.
"""
