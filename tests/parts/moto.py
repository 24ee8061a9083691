"""Starts moto_server with one gap of its signature check closed; arguments are those of `moto_server`.

Where a signed request has no body, its parameters stand in the address. Moto checks such a request as if they had been
the body, so that no `POST …?Action=GetCallerIdentity` with an empty body can pass. That is the form in which workload
identity federation signs it.
"""

import sys

# This file has the package's name: its folder may not stand before the installed packages.
sys.path.pop(0)

from moto.iam.access_control import IAMRequestBase  # noqa: E402
from moto.server import main  # noqa: E402

create_aws_request = IAMRequestBase._create_aws_request


def create_aws_request_as_sent(self):
    if not self._body:
        self._data = None
    return create_aws_request(self)


IAMRequestBase._create_aws_request = create_aws_request_as_sent

if __name__ == "__main__":
    main()
