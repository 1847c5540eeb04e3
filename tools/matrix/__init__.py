"""One table of what passes on which QEMU and which Python: ``make matrix``.

``qemus`` brings the QEMUs of several Debian releases, ``pythons`` the interpreters that
are there and one more from Debian, ``rows`` runs pytest and lays out the table.
"""
