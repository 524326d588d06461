"""AWS at the edges: moto as a server of its own, because the functions are processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import boto3

from margin_local.servers.ports import HOST, choose_port

if TYPE_CHECKING:
    from pathlib import Path

REGION = "eu-central-1"
START_TIMEOUT_S = 30.0


class Aws:
    """Secrets Manager, SQS and DynamoDB.

    Parameters
    ----------
    log : Path
        What the server writes.
    """

    def __init__(self, log: Path) -> None:
        port = choose_port()
        self.url = f"http://{HOST}:{port}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listens(port):
            assert self._process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        # A session of its own asks neither files nor the environment who it is.
        session = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name=REGION)
        self.secrets = session.client("secretsmanager", endpoint_url=self.url)
        self.sqs = session.client("sqs", endpoint_url=self.url)
        self.dynamodb = session.client("dynamodb", endpoint_url=self.url)

    def put_secret(self, name: str, **fields: str) -> None:
        """Make a secret, or give it another value, as its rotation does."""
        text = json.dumps(fields)
        try:
            self.secrets.put_secret_value(SecretId=name, SecretString=text)
        except self.secrets.exceptions.ResourceNotFoundException:
            self.secrets.create_secret(Name=name, SecretString=text)

    def make_queue(self, name: str) -> str:
        """Make a queue and return its URL."""
        return str(self.sqs.create_queue(QueueName=name)["QueueUrl"])

    def receive(self, queue_url: str) -> dict[str, Any]:
        """Take messages from a queue, as the event that a function of it gets."""
        messages = self.sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10).get("Messages", [])
        return {
            "Records": [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": {"ApproximateReceiveCount": "1"},
                    "messageAttributes": {},
                    "md5OfBody": message["MD5OfBody"],
                    "eventSource": "aws:sqs",
                    "eventSourceARN": f"arn:aws:sqs:{REGION}:123456789012:liquidations",
                    "awsRegion": REGION,
                }
                for message in messages
            ]
        }

    def stop(self) -> None:
        """End the server."""
        self.secrets.close()
        self.sqs.close()
        self.dynamodb.close()
        self._process.terminate()
        self._process.wait()

    @staticmethod
    def _listens(port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return True
        return False
