"""An OTLP collector that nobody here wrote a decoder for: messages and services are those of PyPI's opentelemetry-proto, the
server is grpcio's. The first line on stdout has the port; then a line of JSON for each data point and log record that arrives.

Run by the live test `otlp_decoder`. By hand:
    target/tools/otlp-decoder/bin/python3 tests/decoder/otlp_decoder.py
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_service
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

LOCK = threading.Lock()


def say(line):
    with LOCK:
        print(json.dumps(line), flush=True)


def any_value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [any_value(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None


def attributes(pairs):
    return {pair.key: any_value(pair.value) for pair in pairs}


def number(point):
    kind = point.WhichOneof("value")
    return getattr(point, kind) if kind else None


def exponential(point):
    assert point.negative.bucket_counts == [] and point.zero_count == 0, point
    return {
        "count": point.count,
        "sum": point.sum,
        "scale": point.scale,
        "offset": point.positive.offset,
        "buckets": list(point.positive.bucket_counts),
    }


def explicit(point):
    return {
        "count": point.count,
        "sum": point.sum,
        "bounds": list(point.explicit_bounds),
        "buckets": list(point.bucket_counts),
    }


def points(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    read = {"exponential_histogram": exponential, "histogram": explicit}.get(kind, number)
    heading = {"name": metric.name, "unit": metric.unit, "kind": kind}
    if kind != "gauge":
        heading["temporality"] = AggregationTemporality.Name(data.aggregation_temporality)
    if kind == "sum":
        heading["monotonic"] = data.is_monotonic
    for point in data.data_points:
        yield heading | {
            "attributes": attributes(point.attributes),
            "start": point.start_time_unix_nano,
            "time": point.time_unix_nano,
            "value": read(point),
        }


class Metrics(metrics_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        for of_resource in request.resource_metrics:
            whose = {"resource": attributes(of_resource.resource.attributes), "schema": of_resource.schema_url}
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    for point in points(metric):
                        say({"what": "point", "scope": of_scope.scope.name} | whose | point)
        return metrics_service.ExportMetricsServiceResponse()


class Logs(logs_grpc.LogsServiceServicer):
    def Export(self, request, context):
        for of_resource in request.resource_logs:
            whose = {"resource": attributes(of_resource.resource.attributes), "schema": of_resource.schema_url}
            for of_scope in of_resource.scope_logs:
                for record in of_scope.log_records:
                    say(
                        {"what": "record", "scope": of_scope.scope.name}
                        | whose
                        | {
                            "event": record.event_name,
                            "time": record.time_unix_nano,
                            "severity": record.severity_text,
                            "attributes": attributes(record.attributes),
                        }
                    )
        return logs_service.ExportLogsServiceResponse()


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    logs_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say({"what": "listening", "port": port})
    # Whoever started it closes this when it has seen enough.
    sys.stdin.read()
    server.stop(None)


main()
