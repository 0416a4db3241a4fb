//! Whether a query can mean anything: it is PromQL, and names series and labels that there are.
//!
//! Which labels a result may have is followed through the whole expression, so that `by (pod)` over series without such a label,
//! which Prometheus takes without a word, is an error here.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use promql_parser::parser::{
    self, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector,
};

use super::contract::{Contract, Labels};

/// The labels that the query's result may have.
pub(super) fn check(query: &str, contract: &Contract) -> Result<Labels> {
    let parsed = parser::parse(query).map_err(|error| anyhow!("no PromQL: {error}: {query}"))?;
    labels(&parsed, contract).with_context(|| format!("in {query}"))
}

fn labels(expr: &Expr, contract: &Contract) -> Result<Labels> {
    match expr {
        Expr::VectorSelector(selector) => of_selector(selector, contract),
        Expr::MatrixSelector(matrix) => of_selector(&matrix.vs, contract),
        Expr::Paren(paren) => labels(&paren.expr, contract),
        Expr::Unary(unary) => labels(&unary.expr, contract),
        Expr::Subquery(subquery) => labels(&subquery.expr, contract),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(Labels::new()),
        Expr::Extension(_) => bail!("an extension of PromQL"),
        Expr::Call(call) => of_call(call, contract),
        Expr::Binary(binary) => of_binary(binary, contract),
        Expr::Aggregate(aggregate) => {
            let inner = labels(&aggregate.expr, contract)?;
            let operator = aggregate.op.to_string();
            match &aggregate.modifier {
                // These choose among series and leave them as they are.
                _ if matches!(operator.as_str(), "topk" | "bottomk") => Ok(inner),
                None => Ok(Labels::new()),
                Some(LabelModifier::Include(by)) => {
                    known(by.labels.iter(), &inner, "by")?;
                    Ok(by.labels.iter().cloned().collect())
                }
                Some(LabelModifier::Exclude(without)) => {
                    known(without.labels.iter(), &inner, "without")?;
                    Ok(inner.into_iter().filter(|label| !without.labels.contains(label)).collect())
                }
            }
        }
    }
}

fn of_selector(selector: &VectorSelector, contract: &Contract) -> Result<Labels> {
    let name = selector.name.as_deref().context("a selector without a metric's name")?;
    let have = contract
        .labels(name)
        .with_context(|| format!("there is no metric {name}; the nearest is {}", contract.like(name)))?;
    let all = selector.matchers.or_matchers.iter().flatten().chain(&selector.matchers.matchers);
    known(all.map(|matcher| &matcher.name), have, name)?;
    Ok(have.clone())
}

fn of_call(call: &Call, contract: &Contract) -> Result<Labels> {
    let name = call.func.name;
    let mut vectors = Labels::new();
    for arg in &call.args.args {
        vectors.extend(labels(arg, contract)?);
    }
    let text = |i: usize| match call.args.args.get(i).map(AsRef::as_ref) {
        Some(Expr::StringLiteral(text)) => Ok(text.val.clone()),
        _ => bail!("{name} wants a text as argument {}", i + 1),
    };
    match name {
        "label_replace" => {
            known([text(3)?].iter(), &vectors, name)?;
            vectors.insert(text(1)?);
        }
        "label_join" => {
            let from = (3..call.args.args.len()).map(text).collect::<Result<Vec<_>>>()?;
            known(from.iter(), &vectors, name)?;
            vectors.insert(text(1)?);
        }
        "histogram_quantile" => {
            ensure!(vectors.remove("le"), "histogram_quantile wants buckets, which have `le`");
        }
        "scalar" | "time" | "vector" => vectors.clear(),
        _ => {}
    }
    Ok(vectors)
}

fn of_binary(binary: &BinaryExpr, contract: &Contract) -> Result<Labels> {
    let (left, right) = (labels(&binary.lhs, contract)?, labels(&binary.rhs, contract)?);
    let modifier = binary.modifier.as_ref();
    let matching = modifier.and_then(|modifier| modifier.matching.as_ref());
    if let Some(matching) = matching {
        let word = if matches!(matching, LabelModifier::Include(_)) { "on" } else { "ignoring" };
        // `ignoring` names what only one side has; `on` what both have.
        let both = match matching {
            LabelModifier::Include(_) => left.intersection(&right).cloned().collect(),
            LabelModifier::Exclude(_) => left.union(&right).cloned().collect(),
        };
        known(matching.labels().labels.iter(), &both, word)?;
    }
    if binary.op.is_set_operator() {
        return Ok(if binary.op.to_string() == "or" { left.union(&right).cloned().collect() } else { left });
    }
    match modifier.map(|modifier| &modifier.card) {
        Some(VectorMatchCardinality::ManyToOne(more)) => {
            known(more.labels.iter(), &right, "group_left")?;
            Ok(left.into_iter().chain(more.labels.iter().cloned()).collect())
        }
        Some(VectorMatchCardinality::OneToMany(more)) => {
            known(more.labels.iter(), &left, "group_right")?;
            Ok(right.into_iter().chain(more.labels.iter().cloned()).collect())
        }
        Some(VectorMatchCardinality::OneToOne | VectorMatchCardinality::ManyToMany) | None => {
            let scalar = |expr: &Expr| matches!(expr, Expr::NumberLiteral(_));
            if matching.is_none()
                && !scalar(&binary.lhs)
                && !scalar(&binary.rhs)
                && !left.is_empty()
                && !right.is_empty()
            {
                ensure!(
                    left == right,
                    "without `on`, both sides have to have the same labels: {left:?}, {right:?}"
                );
            }
            Ok(match matching {
                Some(LabelModifier::Include(on)) if !binary.op.is_comparison_operator() => {
                    on.labels.iter().cloned().collect()
                }
                _ if left.is_empty() => right,
                Some(LabelModifier::Include(_) | LabelModifier::Exclude(_)) | None => left,
            })
        }
    }
}

fn known<'a>(used: impl IntoIterator<Item = &'a String>, have: &Labels, by: &str) -> Result<()> {
    let unknown: Vec<&String> =
        used.into_iter().filter(|label| *label != "__name__" && !have.contains(*label)).collect();
    ensure!(unknown.is_empty(), "{by}: no such label: {unknown:?}; there are {have:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> Contract {
        let mut contract = Contract::default();
        for (name, labels) in
            [("calls_total", "job call le"), ("errors_total", "job call"), ("info", "job node")]
        {
            contract.record(name, labels.split(' ').map(str::to_owned).collect());
        }
        contract
    }

    #[test]
    fn labels_are_followed_through() {
        for (query, labels) in [
            ("rate(calls_total{call=\"x\"}[5m])", "call job le"),
            ("sum by (call) (rate(calls_total[5m]))", "call"),
            ("sum without (le) (calls_total)", "call job"),
            ("sum(calls_total)", ""),
            ("topk(3, errors_total)", "call job"),
            ("histogram_quantile(0.9, sum by (le, call) (rate(calls_total[5m])))", "call"),
            ("label_replace(errors_total, \"who\", \"$1\", \"call\", \"(.*)\")", "call job who"),
            ("errors_total * on (job) group_left (node) info", "call job node"),
            ("errors_total and on (job) info", "call job"),
            ("errors_total unless errors_total offset 5m", "call job"),
            ("sum by (job) (errors_total) / sum by (job) (calls_total) > 0.1", "job"),
            ("max_over_time(errors_total[1h:1m]) or info", "call job node"),
            ("1 - errors_total", "call job"),
        ] {
            let found = check(query, &contract()).unwrap();
            assert_eq!(found.into_iter().collect::<Vec<_>>().join(" "), labels, "{query}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        for (query, word) in [
            ("sum(", "no PromQL"),
            ("call_total", "no metric call_total; the nearest is calls_total"),
            ("info{call=\"x\"}", "call"),
            ("sum by (pod) (info)", "pod"),
            ("sum by (le) (sum by (job) (calls_total))", "le"),
            ("histogram_quantile(0.9, rate(errors_total[5m]))", "le"),
            ("label_replace(info, \"a\", \"$1\", \"pod\", \"(.*)\")", "pod"),
            ("errors_total * on (call) info", "on"),
            ("errors_total * on (job) group_left (call) info", "group_left"),
            ("errors_total / calls_total", "same labels"),
        ] {
            let error = format!("{:#}", check(query, &contract()).unwrap_err());
            assert!(error.contains(word), "{query}: {error}");
        }
    }
}
