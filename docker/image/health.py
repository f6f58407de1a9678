"""The image's HEALTHCHECK: exit 0 where `/health/ready` says yes. The standard library alone."""

from __future__ import annotations

import http.client
import os
import sys

ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    host = os.environ.get("TERNAUS_HOST", "")
    port = int(os.environ.get("TERNAUS_PORT") or 8000)
    connection = http.client.HTTPConnection(ANY_ADDRESS.get(host, host), port, timeout=4)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        print(answer.read(200).decode(errors="replace"))
    except OSError as exc:
        print(f"no answer on port {port}: {exc}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
