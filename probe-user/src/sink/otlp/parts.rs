//! A request that a collector finds too large, in two.
//!
//! Bodies are kept encoded, since they are hardly ever looked at again: here they are decoded once more.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, Gauge, Histogram, Metric, ResourceMetrics, ScopeMetrics, Sum, Summary, metric,
};
use prost::Message;

use super::encode::EncodedRequest;

/// What holds data points or log records, however deep.
pub(super) trait Items: Sized {
    /// How many.
    fn items(&self) -> usize;

    /// Keeps the first so many; the others are returned, below headings of their own.
    fn split_off(&mut self, keep: usize) -> Self;
}

/// Two requests with half of the items each, in their order; `None` where there are no two items.
pub(super) fn halves<T: Items + Message + Default>(request: &EncodedRequest) -> Option<[EncodedRequest; 2]> {
    let mut front = T::decode(request.body.clone()).ok()?;
    let keep = front.items() / 2;
    if keep == 0 {
        return None;
    }
    let back = front.split_off(keep);
    let part = |of: &T, first: u64| EncodedRequest {
        body: of.encode_to_vec().into(),
        first,
        items: u64::try_from(of.items()).unwrap_or(u64::MAX),
    };
    let (front, back) =
        (part(&front, request.first), part(&back, request.first + u64::try_from(keep).unwrap_or(0)));
    Some([front, back])
}

/// Splits a list behind so many items: between two of its elements, or inside one.
fn split_list<T: Items>(list: &mut Vec<T>, keep: usize) -> Vec<T> {
    let mut left = keep;
    let whole = list.iter().take_while(|one| {
        let fits = one.items() <= left;
        left = left.saturating_sub(if fits { one.items() } else { 0 });
        fits
    });
    let whole = whole.count();
    let mut back = list.split_off(whole);
    if left > 0
        && let Some(first) = back.first_mut()
    {
        let behind = first.split_off(left);
        list.push(std::mem::replace(first, behind));
    }
    back
}

fn sum<T: Items>(list: &[T]) -> usize {
    list.iter().map(Items::items).sum()
}

impl Items for ExportMetricsServiceRequest {
    fn items(&self) -> usize {
        sum(&self.resource_metrics)
    }

    fn split_off(&mut self, keep: usize) -> Self {
        Self { resource_metrics: split_list(&mut self.resource_metrics, keep) }
    }
}

impl Items for ResourceMetrics {
    fn items(&self) -> usize {
        sum(&self.scope_metrics)
    }

    fn split_off(&mut self, keep: usize) -> Self {
        let scope_metrics = split_list(&mut self.scope_metrics, keep);
        Self { resource: self.resource.clone(), scope_metrics, schema_url: self.schema_url.clone() }
    }
}

impl Items for ScopeMetrics {
    fn items(&self) -> usize {
        sum(&self.metrics)
    }

    fn split_off(&mut self, keep: usize) -> Self {
        let metrics = split_list(&mut self.metrics, keep);
        Self { scope: self.scope.clone(), metrics, schema_url: self.schema_url.clone() }
    }
}

impl Items for Metric {
    fn items(&self) -> usize {
        match &self.data {
            Some(metric::Data::Gauge(gauge)) => gauge.data_points.len(),
            Some(metric::Data::Sum(sum)) => sum.data_points.len(),
            Some(metric::Data::Histogram(histogram)) => histogram.data_points.len(),
            Some(metric::Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
            Some(metric::Data::Summary(summary)) => summary.data_points.len(),
            None => 0,
        }
    }

    fn split_off(&mut self, keep: usize) -> Self {
        fn behind<T>(points: &mut Vec<T>, keep: usize) -> Vec<T> {
            points.split_off(keep.min(points.len()))
        }
        let data = self.data.as_mut().map(|data| match data {
            metric::Data::Gauge(gauge) => {
                metric::Data::Gauge(Gauge { data_points: behind(&mut gauge.data_points, keep) })
            }
            metric::Data::Sum(sum) => {
                metric::Data::Sum(Sum { data_points: behind(&mut sum.data_points, keep), ..*sum })
            }
            metric::Data::Histogram(histogram) => metric::Data::Histogram(Histogram {
                data_points: behind(&mut histogram.data_points, keep),
                ..*histogram
            }),
            metric::Data::ExponentialHistogram(histogram) => {
                metric::Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: behind(&mut histogram.data_points, keep),
                    ..*histogram
                })
            }
            metric::Data::Summary(summary) => {
                metric::Data::Summary(Summary { data_points: behind(&mut summary.data_points, keep) })
            }
        });
        Self {
            name: self.name.clone(),
            description: self.description.clone(),
            unit: self.unit.clone(),
            metadata: self.metadata.clone(),
            data,
        }
    }
}

impl Items for ExportLogsServiceRequest {
    fn items(&self) -> usize {
        sum(&self.resource_logs)
    }

    fn split_off(&mut self, keep: usize) -> Self {
        Self { resource_logs: split_list(&mut self.resource_logs, keep) }
    }
}

impl Items for ResourceLogs {
    fn items(&self) -> usize {
        sum(&self.scope_logs)
    }

    fn split_off(&mut self, keep: usize) -> Self {
        let scope_logs = split_list(&mut self.scope_logs, keep);
        Self { resource: self.resource.clone(), scope_logs, schema_url: self.schema_url.clone() }
    }
}

impl Items for ScopeLogs {
    fn items(&self) -> usize {
        self.log_records.len()
    }

    fn split_off(&mut self, keep: usize) -> Self {
        let log_records = self.log_records.split_off(keep.min(self.log_records.len()));
        Self { scope: self.scope.clone(), log_records, schema_url: self.schema_url.clone() }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;
    use crate::sink::otlp::resource::text;

    /// So many records of each owner.
    fn logs(of_owners: &[u64]) -> EncodedRequest {
        let mut time = 0;
        let of_owner = |(owner, records): (usize, &u64)| {
            let record = |_| {
                time += 1;
                LogRecord { time_unix_nano: time, ..LogRecord::default() }
            };
            let log_records = (0..*records).map(record).collect();
            let attributes = vec![text("owner", &owner.to_string())];
            ResourceLogs {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_logs: vec![ScopeLogs { log_records, ..ScopeLogs::default() }],
                schema_url: "s".to_owned(),
            }
        };
        let resource_logs = of_owners.iter().enumerate().map(of_owner).collect();
        let body = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
        EncodedRequest { body, first: 100, items: of_owners.iter().sum() }
    }

    /// Owner and time of each record, and with which heading.
    fn told(request: &EncodedRequest) -> Vec<(Option<Resource>, u64)> {
        let message = ExportLogsServiceRequest::decode(request.body.clone()).unwrap();
        let mut all = Vec::new();
        for of_resource in message.resource_logs {
            assert_eq!(of_resource.schema_url, "s");
            for record in &of_resource.scope_logs[0].log_records {
                all.push((of_resource.resource.clone(), record.time_unix_nano));
            }
        }
        all
    }

    #[test]
    fn two_halves_are_the_whole_whoever_the_items_are_of() {
        for of_owners in [&[2][..], &[1, 1], &[7], &[1, 9], &[9, 1], &[3, 3, 3], &[1; 5]] {
            let whole = logs(of_owners);
            let [front, back] = halves::<ExportLogsServiceRequest>(&whole).unwrap();
            assert_eq!((front.items, front.items + back.items), (whole.items / 2, whole.items));
            assert_eq!((front.first, back.first), (100, 100 + front.items));
            assert_eq!([told(&front), told(&back)].concat(), told(&whole), "{of_owners:?}");
        }
        assert_eq!(halves::<ExportLogsServiceRequest>(&logs(&[1])), None);
        assert_eq!(halves::<ExportLogsServiceRequest>(&logs(&[])), None);
    }
}
