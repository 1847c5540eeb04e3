"""One NIC, from the options to its unplugging.

``port`` has the classes for users, Qemu and Port. Behind them are ``host`` and ``attachment``; the
other modules are their parts, and each uses only those below it.
"""
