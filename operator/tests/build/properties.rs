//! What holds for any input.

use millrace_operator::api::{PodOverrides, Role};
use millrace_operator::build::{Invalid, names, resolve};
use proptest::prelude::*;
use serde_json::json;

use crate::cases::{
    PRIVILEGED, RESTRICTED, args, defaults, deployment, resolved, router_pod, worker_pod,
};

/// Every flag that is set is one that nobody else may set: a command takes it once.
#[test]
fn flags_are_set_once() {
    for (case, spec) in RESTRICTED.into_iter().chain(PRIVILEGED) {
        let fine = resolved(spec);
        let mut pods = vec![("router", router_pod(&fine))];
        for role in Role::ALL {
            if fine.pool(role).is_some() {
                pods.push((role.as_str(), worker_pod(&fine, role)));
            }
        }
        for (part, pod) in pods {
            let own: Vec<_> = match part {
                "router" => fine.router.pod.args.clone(),
                "prefill" => fine.prefill.as_ref().unwrap().worker.pod.args.clone(),
                _ => fine.decode.worker.pod.args.clone(),
            };
            for arg in args(&pod.containers[0]).into_iter().skip(1) {
                if own.iter().any(|it| it == arg) {
                    continue;
                }
                let mut changed = deployment("m", spec);
                let overrides = PodOverrides {
                    args: vec![arg.to_owned()],
                    ..PodOverrides::default()
                };
                match part {
                    "router" => changed.spec.router.pod = overrides,
                    "prefill" => changed.spec.prefill.as_mut().unwrap().pod = overrides,
                    _ => changed.spec.decode.pod = overrides,
                }
                let wrong = resolve(&changed, &defaults()).expect_err(arg);
                assert!(
                    wrong
                        .iter()
                        .any(|it| it.field == format!("spec.{part}.pod.args[0]")),
                    "{case}: {part} {arg}"
                );
            }
        }
    }
}

proptest! {
    /// Whatever a deployment is called: it is refused, or all of its names are names.
    #[test]
    fn names_are_names_or_are_refused(name in "[a-zA-Z0-9.-]{0,70}") {
        let spec = "model: {source: {builtin: tiny-r1}}\ndecode: {}\n";
        let is_label = |text: &str| {
            text.len() <= 63
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !text.starts_with('-') && !text.ends_with('-') && !text.is_empty()
        };
        match resolve(&deployment(&name, spec), &defaults()) {
            Ok(resolved) => {
                let pool = names::pool(&name, &resolved.revision, Role::Prefill);
                let group = names::group(&pool, 9999);
                for made in [&pool, &group, &names::pod(&group, 1023), &names::router(&name), &names::workers(&name)] {
                    prop_assert!(is_label(made), "{}", made);
                }
                prop_assert!(group.len() <= 52);
                prop_assert_eq!(names::ordinal(&pool, &group), Some(9999));
            }
            Err(wrong) => {
                let of_name = |it: &Invalid| it.field == "metadata.name";
                prop_assert!(wrong.iter().all(of_name));
                prop_assert!(!is_label(&name) || name.len() > 30 || name.ends_with("-router")
                    || !name.starts_with(|c: char| c.is_ascii_lowercase()));
            }
        }
    }

    /// No value can be misread as more than one argument, or as a variable.
    #[test]
    fn values_stay_values(name in "[^,\\x00-\\x1f]{1,20}") {
        let mut deployment = deployment("m", "model: {source: {builtin: tiny-r1}}\ndecode: {}\n");
        deployment.spec.model.served_names = vec![name.clone()];
        let resolved = resolve(&deployment, &defaults()).unwrap();
        let pod = worker_pod(&resolved, Role::Decode);
        let args = args(&pod.containers[0]);
        let expanded = args[1].replace("$$(", "$(");
        prop_assert_eq!(expanded, format!("--served-model-name={name}"));
    }

    /// What is given for resources is either refused by its field, or what a pod asks for.
    #[test]
    fn amounts_are_amounts_or_are_refused(amount in "[0-9a-zA-Z.+-]{0,6}") {
        let mut deployment = deployment("m", "model: {source: {builtin: tiny-r1}}\ndecode: {}\n");
        let resources = json!({ "limits": { "memory": amount } });
        deployment.spec.decode.resources = Some(serde_json::from_value(resources).unwrap());
        match resolve(&deployment, &defaults()) {
            Ok(resolved) => {
                prop_assert!(amount.contains(|c: char| c.is_ascii_digit()));
                prop_assert!(!amount.starts_with('-') || !amount.contains(|c: char| ('1'..='9').contains(&c)), "{}", amount);
                let pod = worker_pod(&resolved, Role::Decode);
                let limits = pod.containers[0].resources.clone().unwrap().limits.unwrap();
                prop_assert_eq!(&limits["memory"].0, &amount);
            }
            Err(wrong) => prop_assert_eq!(&wrong[0].field, "spec.decode.resources.limits[memory]"),
        }
    }
}
