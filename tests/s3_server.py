"""s3_server.py PORT: an S3-protocol server on loopback (moto behind cheroot); keeps nothing after it ends."""

import sys

from cheroot.wsgi import Server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

if __name__ == "__main__":
    # a queue as long as a store's: of its own length, 5, sixty connections at once wait for half a minute
    server = Server(
        ("127.0.0.1", int(sys.argv[1])),
        DomainDispatcherApplication(create_backend_app),
        numthreads=40,
        request_queue_size=512,
    )
    server.max_request_body_size = 0
    server.start()
