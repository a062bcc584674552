//! Where the profile is: in the spec, or in a ConfigMap that it names.
//!
//! ConfigMaps are the one thing that is asked for instead of watched: the right to watch them is the
//! right to read all of a namespace's, over and over.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;

use super::inputs;
use super::recollections::Recollection;
use super::target::Barred;
use crate::api::{ConfigMapKey, Profile, ProfileSource};
use crate::cache::Key;
use crate::controller::Context;
use crate::error::Error;

/// The name that a file of `millrace bench profile` has where nobody says another.
const KEY: &str = "profile.yaml";
/// Less than there is between two looks that nothing hurries.
const READ_EVERY: Duration = Duration::from_secs(10);

/// What a ConfigMap said.
pub struct Read {
    from: ConfigMapKey,
    at: Duration,
    said: Result<Profile, Barred>,
}

/// The profile; or what is wrong with the ConfigMap.
///
/// # Errors
/// It could not be asked for.
pub async fn profile(
    context: &Context,
    key: &Key,
    source: &ProfileSource,
    recollection: &mut Recollection,
) -> Result<Result<Profile, Barred>, Error> {
    let Some(from) = &source.config_map else {
        recollection.profile = None;
        return Ok(source.inline().ok_or(Barred::Profile));
    };
    let now = context.recollections.now();
    if let Some(read) = &recollection.profile
        && read.from == *from
        && now.saturating_sub(read.at) < READ_EVERY
    {
        return Ok(read.said.clone());
    }
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = api.get_opt(&from.name).await.map_err(|error| {
        let what = format!("configmaps {}/{}", key.namespace, from.name);
        Error::api("get", what, error)
    })?;
    let said = of(from, found.as_ref());
    recollection.profile = Some(Read {
        from: from.clone(),
        at: now,
        said: said.clone(),
    });
    Ok(said)
}

/// What `millrace bench profile` prints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profile: Profile,
}

fn of(from: &ConfigMapKey, found: Option<&ConfigMap>) -> Result<Profile, Barred> {
    let (name, key) = (from.name.clone(), from.key.clone());
    let key = key.unwrap_or_else(|| KEY.to_owned());
    let Some(found) = found else {
        return Err(Barred::NoConfigMap { name, key });
    };
    let text = found.data.as_ref().and_then(|data| data.get(&key));
    let Some(text) = text else {
        return Err(Barred::NoKey { name, key });
    };
    let none = |error: String| Barred::NoProfile {
        name: name.clone(),
        key: key.clone(),
        error,
    };
    let File { profile } = serde_saphyr::from_str(text).map_err(|error| none(error.to_string()))?;
    // What the definition checks of a profile in the spec.
    let checked = inputs::model(&profile).validate();
    checked.map_err(|error| none(error.to_string()))?;
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "# tiny-r1 on cpu, by `millrace bench profile`; off by 9 % at most in prefill and 4 % in decode.
profile:
  prefill:
    chunkTokens: 512
    baseSeconds: 1.2000e-3
    secondsPerToken: 8.1000e-5
    secondsPerTokenContext: 0.0000e0
  decode:
    baseSeconds: 4.0000e-3
    secondsPerSequence: 6.0000e-4
    secondsPerContextToken: 4.0000e-7
  maxRunning: 32
  kvTokens: 65536
";

    fn said(text: &str) -> Result<Profile, Barred> {
        let from = ConfigMapKey {
            name: "tiny".to_owned(),
            key: None,
        };
        let map = ConfigMap {
            data: Some([(KEY.to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        };
        of(&from, Some(&map))
    }

    #[test]
    fn what_the_benchmark_prints_is_a_profile() {
        let profile = said(PRINTED).unwrap();
        assert_eq!(profile.prefill.chunk_tokens, 512);
        assert_eq!(profile.prefill.seconds_per_token, 8.1e-5);
        assert_eq!(profile.decode.base_seconds, 4e-3);
        assert_eq!((profile.max_running, profile.kv_tokens), (32, 65_536));
    }

    #[test]
    fn what_is_none_says_what_to_do() {
        let from = ConfigMapKey {
            name: "tiny".to_owned(),
            key: Some("p".to_owned()),
        };
        let missing = of(&from, None).unwrap_err();
        assert_eq!(missing.reason(), "ProfileMissing");
        let text = missing.to_string();
        assert!(text.contains("kubectl create configmap tiny --from-file=p="));
        let empty = of(&from, Some(&ConfigMap::default())).unwrap_err();
        assert_eq!(empty.reason(), "ProfileMissing");
        assert!(empty.to_string().contains("has no key p"), "{empty}");
        for (change, why) in [
            (("maxRunning: 32", "maxRunning: 0"), "maxRunning is 0"),
            (("maxRunning: 32", "maxRuning: 32"), "maxRuning"),
            (("4.0000e-3", "0"), "decode.baseSeconds is 0"),
            (("4.0000e-3", "-1"), "decode.baseSeconds is -1"),
            (("4.0000e-3", ".nan"), "decode.baseSeconds is NaN"),
            (("chunkTokens: 512", "chunkTokens: 0"), "chunkTokens is 0"),
            (("profile:", "step:"), "step"),
            ((PRINTED, "a: [b"), "line 1"),
        ] {
            let error = said(&PRINTED.replace(change.0, change.1)).unwrap_err();
            assert_eq!(error.reason(), "ProfileInvalid", "{change:?}");
            let text = error.to_string();
            assert!(text.contains(why) && text.contains("tiny"), "{text}");
        }
    }
}
