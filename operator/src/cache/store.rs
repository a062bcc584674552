//! What a watch has told so far, by namespace and name, and by the ModelDeployment it belongs to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;

/// A namespace and a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Of the object that this is the metadata of.
    pub fn of(meta: &ObjectMeta) -> Key {
        Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is kept of an object.
pub trait Cached: Send + Sync + 'static {
    fn key(&self) -> Key;
    /// The name of the ModelDeployment that it belongs to, in its own namespace.
    fn deployment(&self) -> Option<&str>;
}

/// Cheap to clone; all clones are the same store.
pub struct Store<V> {
    inner: Arc<RwLock<Inner<V>>>,
}

struct Inner<V> {
    objects: HashMap<Key, Arc<V>>,
    by_deployment: HashMap<Key, BTreeSet<Key>>,
}

impl<V> Clone for Store<V> {
    fn clone(&self) -> Self {
        Store {
            inner: self.inner.clone(),
        }
    }
}

impl<V: Cached> Default for Store<V> {
    fn default() -> Self {
        Store {
            inner: Arc::new(RwLock::new(Inner {
                objects: HashMap::new(),
                by_deployment: HashMap::new(),
            })),
        }
    }
}

impl<V: Cached> Store<V> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<V>> {
        self.inner
            .read()
            .objects
            .get(&Key::new(namespace, name))
            .cloned()
    }

    /// All of a ModelDeployment, by name.
    pub fn of(&self, namespace: &str, deployment: &str) -> Vec<Arc<V>> {
        let inner = self.inner.read();
        let Some(keys) = inner.by_deployment.get(&Key::new(namespace, deployment)) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| inner.objects.get(key).cloned())
            .collect()
    }

    pub fn all(&self) -> Vec<Arc<V>> {
        self.inner.read().objects.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    pub(super) fn put(&self, value: V) -> Arc<V> {
        let (key, value) = (value.key(), Arc::new(value));
        let mut inner = self.inner.write();
        inner.forget(&key);
        if let Some(deployment) = value.deployment() {
            let deployment = Key::new(&key.namespace, deployment);
            inner
                .by_deployment
                .entry(deployment)
                .or_default()
                .insert(key.clone());
        }
        inner.objects.insert(key, value.clone());
        value
    }

    pub(super) fn remove(&self, key: &Key) -> Option<Arc<V>> {
        self.inner.write().forget(key)
    }

    /// Removes what a complete list did not name, and returns it: deletions that no watch told of.
    pub(super) fn retain(&self, listed: &HashSet<Key>) -> Vec<Arc<V>> {
        let mut inner = self.inner.write();
        let gone: Vec<Key> = inner
            .objects
            .keys()
            .filter(|key| !listed.contains(*key))
            .cloned()
            .collect();
        gone.iter().filter_map(|key| inner.forget(key)).collect()
    }
}

impl<V: Cached> Inner<V> {
    fn forget(&mut self, key: &Key) -> Option<Arc<V>> {
        let value = self.objects.remove(key)?;
        if let Some(deployment) = value.deployment() {
            let deployment = Key::new(&key.namespace, deployment);
            if let Some(keys) = self.by_deployment.get_mut(&deployment) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_deployment.remove(&deployment);
                }
            }
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Child(&'static str, Option<&'static str>);

    impl Cached for Child {
        fn key(&self) -> Key {
            Key::new("n", self.0)
        }
        fn deployment(&self) -> Option<&str> {
            self.1
        }
    }

    fn names(store: &Store<Child>, deployment: &str) -> Vec<&'static str> {
        store.of("n", deployment).iter().map(|c| c.0).collect()
    }

    #[test]
    fn objects_are_found_by_name_and_by_deployment() {
        let store = Store::default();
        store.put(Child("b", Some("m")));
        store.put(Child("a", Some("m")));
        store.put(Child("c", None));
        assert_eq!(names(&store, "m"), ["a", "b"]);
        assert!(store.get("n", "c").is_some() && store.get("other", "c").is_none());
        store.put(Child("a", Some("other")));
        assert_eq!(names(&store, "m"), ["b"]);
        assert_eq!(names(&store, "other"), ["a"]);
        store.remove(&Key::new("n", "b"));
        assert!(names(&store, "m").is_empty());
        let of_m = Key::new("n", "m");
        assert!(!store.inner.read().by_deployment.contains_key(&of_m));
    }

    #[test]
    fn a_list_tells_of_deletions_that_no_watch_told_of() {
        let store = Store::default();
        store.put(Child("a", Some("m")));
        store.put(Child("b", Some("m")));
        let gone = store.retain(&HashSet::from([Key::new("n", "a")]));
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].0, "b");
        assert_eq!(names(&store, "m"), ["a"]);
    }
}
