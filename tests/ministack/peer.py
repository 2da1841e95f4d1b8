"""The official device SDK as a device: what it can do here, our agent must be able to do as well."""

import json
import queue
import urllib.error
import urllib.request
import uuid
from concurrent.futures import Future

from awscrt import mqtt
from awsiot import iotjobs, mqtt_connection_builder

import cloud

LIMIT = 10  # seconds for any answer


class Peer:
    """A connected device; a context manager."""

    def __init__(self, identity, ca, client_id=None):
        self.thing = identity.thing
        self.connection = mqtt_connection_builder.mtls_from_path(
            endpoint=cloud.MQTT[0], port=cloud.MQTT[1], ca_filepath=str(ca), cert_filepath=str(identity.cert),
            pri_key_filepath=str(identity.key), client_id=client_id or identity.thing, clean_session=True, keep_alive_secs=30)
        self.jobs = iotjobs.IotJobsClient(self.connection)
        self.notices = queue.Queue()

    def __enter__(self):
        self.connection.connect().result(LIMIT)
        request = iotjobs.NextJobExecutionChangedSubscriptionRequest(thing_name=self.thing)
        self._subscribe(self.jobs.subscribe_to_next_job_execution_changed_events, request, self.notices.put)
        return self

    def __exit__(self, *_):
        self.connection.disconnect().result(LIMIT)

    def _subscribe(self, call, request, callback):
        future, _ = call(request, mqtt.QoS.AT_LEAST_ONCE, callback)
        future.result(LIMIT)

    def _ask(self, name, subscription, request):
        """('accepted' | 'rejected', answer)."""
        answer = Future()
        request.client_token = str(uuid.uuid4())

        def take(kind):
            return lambda got: None if answer.done() else answer.set_result((kind, got))

        for kind in ("accepted", "rejected"):
            self._subscribe(getattr(self.jobs, f"subscribe_to_{name}_{kind}"), subscription, take(kind))
        getattr(self.jobs, f"publish_{name}")(request, mqtt.QoS.AT_LEAST_ONCE).result(LIMIT)
        return answer.result(LIMIT)

    def start_next(self):
        """The next job's execution, or None."""
        kind, got = self._ask(
            "start_next_pending_job_execution",
            iotjobs.StartNextPendingJobExecutionSubscriptionRequest(thing_name=self.thing),
            iotjobs.StartNextPendingJobExecutionRequest(thing_name=self.thing))
        assert kind == "accepted", got
        return got.execution if got.execution and got.execution.job_id else None

    def update(self, execution, status, **more):
        return self._ask(
            "update_job_execution",
            iotjobs.UpdateJobExecutionSubscriptionRequest(thing_name=self.thing, job_id=execution.job_id),
            iotjobs.UpdateJobExecutionRequest(
                thing_name=self.thing, job_id=execution.job_id, execution_number=execution.execution_number, status=status,
                **more))

    def fresh_document(self, execution):
        """The document with newly signed URLs: one update that asks for it, within the seed's policy."""
        kind, got = self.update(
            execution, iotjobs.JobStatus.IN_PROGRESS, include_job_document=True, include_job_execution_state=True)
        assert kind == "accepted", got
        return got.job_document


def fetch(url, first=None, last=None):
    """(status, body) of a ranged GET; a refusal is a status too."""
    headers = {} if first is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LIMIT) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def document_of(execution):
    document = execution.job_document
    return json.loads(document) if isinstance(document, str) else document
