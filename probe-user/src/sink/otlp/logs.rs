//! Events as OTLP log records, and the queue in which they wait.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use prost::Message;

use super::encode::{Cutter, EncodedRequest, RequestLimits, scope};
use super::resource::{Resources, SCHEMA_URL, key_value};
use crate::entity::Entity;
use crate::event::{AttrValue, Attributes, key};

/// An event as a log record. What its resource says already (whose it is) is not said again.
pub(super) fn record(event: &dyn Attributes, observed_unix_ns: u64) -> LogRecord {
    let mut attributes = Vec::new();
    event.visit(&mut |key, value| {
        if !matches!(key, key::CONTAINER_ID | key::K8S_POD_UID) {
            attributes.push(key_value(key, any(value)));
        }
    });
    LogRecord {
        time_unix_nano: event.time_unix_ns(),
        observed_time_unix_nano: observed_unix_ns,
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        attributes,
        event_name: event.event_name().to_owned(),
        ..LogRecord::default()
    }
}

fn any(value: AttrValue<'_>) -> any_value::Value {
    match value {
        AttrValue::Str(text) => any_value::Value::StringValue(text.to_owned()),
        AttrValue::Int(number) => any_value::Value::IntValue(number),
        AttrValue::Float(number) => any_value::Value::DoubleValue(number),
        AttrValue::Bool(yes) => any_value::Value::BoolValue(yes),
        AttrValue::List(texts) => {
            let value = |text: &&str| AnyValue { value: Some(any(AttrValue::Str(text))) };
            any_value::Value::ArrayValue(ArrayValue { values: texts.iter().map(value).collect() })
        }
        AttrValue::Map(counts) => {
            let pair = |(key, n): &(&str, i64)| -> KeyValue { key_value(key, any(AttrValue::Int(*n))) };
            any_value::Value::KvlistValue(KeyValueList { values: counts.iter().map(pair).collect() })
        }
    }
}

/// Encodes a batch, one `ResourceLogs` an owner and request.
pub(super) fn encode(
    batch: Vec<(Entity, LogRecord)>,
    resources: &Resources,
    limits: RequestLimits,
) -> Vec<EncodedRequest> {
    let mut by_owner: HashMap<Entity, Vec<LogRecord>, foldhash::fast::RandomState> = HashMap::default();
    for (entity, record) in batch {
        by_owner.entry(entity).or_default().push(record);
    }
    let mut cutter = Cutter::new(limits);
    for (entity, records) in by_owner {
        let resource = resources.of(&entity);
        let empty_len = resource.encoded_len() + scope().encoded_len() + 2 * SCHEMA_URL.len() + 64;
        let (mut part, mut len) = (Vec::new(), empty_len);
        let append = |part: &mut Vec<LogRecord>, cutter: &mut Cutter| {
            let items = part.len();
            if items > 0 {
                let scope_logs = vec![ScopeLogs {
                    scope: Some(scope()),
                    log_records: std::mem::take(part),
                    schema_url: SCHEMA_URL.to_owned(),
                }];
                let schema_url = SCHEMA_URL.to_owned();
                cutter.append(
                    &ResourceLogs { resource: Some(resource.clone()), scope_logs, schema_url },
                    items,
                );
            }
        };
        for record in records {
            let record_len = record.encoded_len() + 8;
            if !cutter.fits(len + record_len, part.len() + 1) {
                append(&mut part, &mut cutter);
                cutter.cut();
                len = empty_len;
            }
            len += record_len;
            part.push(record);
        }
        append(&mut part, &mut cutter);
    }
    cutter.finish()
}

/// Bounded; when it is full the oldest goes.
#[derive(Debug)]
pub(super) struct EventQueue {
    capacity: usize,
    waiting: Mutex<VecDeque<(Entity, LogRecord)>>,
}

impl EventQueue {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), waiting: Mutex::new(VecDeque::new()) }
    }

    /// Takes one in: how many wait now, and whether one had to go for it.
    pub(super) fn push(&self, entity: Entity, record: LogRecord) -> (usize, bool) {
        let mut waiting = self.lock();
        let full = waiting.len() >= self.capacity;
        if full {
            waiting.pop_front();
        }
        waiting.push_back((entity, record));
        (waiting.len(), full)
    }

    /// The oldest, `most` at most.
    pub(super) fn take(&self, most: usize) -> Vec<(Entity, LogRecord)> {
        let mut waiting = self.lock();
        let n = waiting.len().min(most);
        waiting.drain(..n).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Entity, LogRecord)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::name;
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;

    struct Summary(u64);

    impl Attributes for Summary {
        fn event_name(&self) -> &'static str {
            name::SYSCALL_SUMMARY
        }

        fn time_unix_ns(&self) -> u64 {
            self.0
        }

        fn visit(&self, visitor: &mut dyn FnMut(&'static str, AttrValue<'_>)) {
            visitor(key::SYSCALL_NAME, "openat".into());
            visitor(key::ERRORS, AttrValue::Map(&[("ENOENT", 3)]));
            visitor(key::SYSCALL_ARGS, AttrValue::List(&["0x1", "0x2"]));
            visitor(key::DURATION_SUM, AttrValue::Float(0.5));
            visitor(key::CONTAINER_ID, "abc".into());
        }
    }

    #[test]
    fn the_oldest_goes_first_and_none_goes_unseen() {
        let queue = EventQueue::new(3);
        let dropped = (0..5).filter(|&i| queue.push(Entity::Host, record(&Summary(i), 9)).1).count();
        assert_eq!((queue.len(), dropped), (3, 2));
        let times: Vec<_> = queue.take(2).iter().map(|(_, record)| record.time_unix_nano).collect();
        assert_eq!((times, queue.len()), (vec![2, 3], 1));
    }

    #[test]
    fn an_event_keeps_its_name_and_attributes_and_batches_are_cut() {
        let resources = Resources::resolve(&|_| None, "node1", "1234").unwrap();
        let batch = || (0..10).map(|i| (Entity::Host, record(&Summary(i), 9))).collect();
        for (items, requests) in [(100, 1), (4, 3)] {
            let limits = RequestLimits { items, ..RequestLimits::default() };
            let encoded = encode(batch(), &resources, limits);
            assert_eq!(encoded.len(), requests);
            let mut times = Vec::new();
            for request in &encoded {
                let request = ExportLogsServiceRequest::decode(request.body.clone()).unwrap();
                for record in &request.resource_logs[0].scope_logs[0].log_records {
                    times.push(record.time_unix_nano);
                    assert_eq!(record.event_name, "syscall.summary");
                    let keys: Vec<_> = record.attributes.iter().map(|kv| kv.key.as_str()).collect();
                    assert_eq!(keys, ["syscall.name", "errors", "syscall.args", "duration.sum"]);
                }
            }
            assert_eq!(times, (0..10).collect::<Vec<_>>());
        }
    }
}
