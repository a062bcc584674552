//! The custom resource definitions as YAML, for `millrace crds` and the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

use crate::api::{ModelDeployment, PoolAutoscaler, WorkerPool};

/// Formats of schemars that Kubernetes does not know, and warns of. Their ranges are there anyway.
const UNKNOWN_FORMATS: [&str; 5] = ["uint", "uint8", "uint16", "uint32", "uint64"];

/// Every definition, as one stream of YAML documents.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for mut definition in [
        ModelDeployment::crd(),
        WorkerPool::crd(),
        PoolAutoscaler::crd(),
    ] {
        tidy(&mut definition);
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&definition)?);
    }
    Ok(text)
}

fn tidy(definition: &mut CustomResourceDefinition) {
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            without_unknown_formats(schema);
        }
    }
}

fn without_unknown_formats(schema: &mut JSONSchemaProps) {
    let format = schema.format.as_deref();
    if format.is_some_and(|format| UNKNOWN_FORMATS.contains(&format)) {
        schema.format = None;
    }
    let mut within: Vec<&mut JSONSchemaProps> = Vec::new();
    within.extend(
        schema
            .properties
            .iter_mut()
            .flatten()
            .map(|(_, child)| child),
    );
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => within.push(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => within.extend(items),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        within.push(values);
    }
    within.into_iter().for_each(without_unknown_formats);
}

#[cfg(test)]
mod tests {
    #[test]
    fn definitions_are_yaml_that_kubernetes_has_nothing_to_say_of() {
        let text = super::yaml().unwrap();
        assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 3);
        assert!(!text.contains("format: uint"), "API servers warn of these");
        if let Ok(path) = std::env::var("CRDS_OUT") {
            std::fs::write(path, text).unwrap();
        }
    }
}
