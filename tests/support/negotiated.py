"""What a port and its device agreed on."""

import virtnic


def accepted(port: virtnic.Port) -> set[str]:
    """Return the names of the features in force."""
    return {name for name, _, _, accepted, _ in port.features if accepted}


def offered(port: virtnic.Port) -> set[str]:
    """Return the names of the features that the device has."""
    return {name for name, _, offered, _, _ in port.features if offered}
