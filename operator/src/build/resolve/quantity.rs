//! Amounts of resources, as Kubernetes writes them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::checks::{self, Report};

/// `None`: Kubernetes would not take it. Precise enough to compare and not to count.
pub fn parse(quantity: &str) -> Option<f64> {
    let digits = quantity
        .find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c))
        .unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(digits);
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    let well_formed = unsigned.contains(|c: char| c.is_ascii_digit())
        && !unsigned.contains(['+', '-'])
        && unsigned.matches('.').count() <= 1;
    let number: f64 = number.parse().ok().filter(|_| well_formed)?;
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    let at = |list: &[&str]| list.iter().position(|it| *it == suffix);
    if let Some(at) = at(&binary) {
        return Some(number * 1024_f64.powi(at as i32 + 1));
    }
    if let Some(at) = at(&decimal) {
        return Some(number * 1000_f64.powi(at as i32 - 3));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some(number * 10_f64.powi(exponent))
}

pub fn check(report: &mut Report, field: &str, quantity: &Quantity) {
    if !parse(&quantity.0).is_some_and(|amount| amount >= 0.0) {
        report.add(
            field,
            format!(
                "{:?} is no amount; write one such as 2, 500m or 16Gi",
                quantity.0
            ),
        );
    }
}

/// Amounts, and what a container may not ask for.
pub fn resources(report: &mut Report, field: &str, resources: Option<&ResourceRequirements>) {
    let Some(resources) = resources else { return };
    let none = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let requests = resources.requests.as_ref().unwrap_or(&none);
    for (which, amounts) in [("limits", limits), ("requests", requests)] {
        for (name, amount) in amounts {
            let field = format!("{field}.{which}[{name}]");
            if !checks::is_key(name) {
                report.add(&field, format!("{name:?} cannot be a resource's name; write cpu, memory or vendor.example/device"));
            }
            check(report, &field, amount);
            let whole = parse(&amount.0).is_none_or(|amount| amount.fract() == 0.0);
            if is_device(name) && !whole {
                report.add(
                    field,
                    format!(
                        "devices come whole, and {:?} is a part of one; write a whole number",
                        amount.0
                    ),
                );
            }
        }
    }
    for (name, request) in requests {
        let limit = limits.get(name);
        let (most, least) = (limit.and_then(|it| parse(&it.0)), parse(&request.0));
        let field = format!("{field}.requests[{name}]");
        match (most, least) {
            (Some(most), Some(least)) if least > most => report.add(
                field,
                format!("{} is more than the limit of {most}; lower it, or raise the limit", request.0),
            ),
            (Some(most), Some(least)) if is_device(name) && least < most => report.add(
                field,
                "devices are not shared, so what is requested must be the limit; remove the request",
            ),
            (None, _) if is_device(name) && limit.is_none() => report.add(
                field,
                "devices need a limit; write it under limits, and remove the request",
            ),
            _ => {}
        }
    }
    if resources
        .claims
        .as_ref()
        .is_some_and(|claims| !claims.is_empty())
    {
        report.add(
            format!("{field}.claims"),
            "claims of devices (DRA) are not passed on yet; ask for devices under limits",
        );
    }
}

/// Resources that Kubernetes does not know itself.
fn is_device(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/") && !name.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, amount) in [
            ("1", 1.0),
            ("500m", 0.5),
            ("1.5Gi", 1.5 * 1024.0 * 1024.0 * 1024.0),
            (".5", 0.5),
            ("1.", 1.0),
            ("2e3", 2000.0),
            ("2E", 2e18),
            ("1E2", 100.0),
            ("-1", -1.0),
            ("+3k", 3000.0),
        ] {
            let got = parse(text).unwrap();
            assert!(
                (got - amount).abs() <= amount.abs() * 1e-12,
                "{text}: {got}"
            );
        }
        for text in [
            "", "x", "1x", "1 Gi", "--1", "1.2.3", "Gi", ".", "1e", "1gi", "1K", "nan", "inf",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
