//! Stands in for `crate::entity` until it is there.
use std::sync::Arc;

/// Whose a series is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// The host: whatever is in no container.
    Host,
    /// A container.
    Container(Arc<ContainerIdentity>),
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerIdentity {
    /// Full id.
    pub container_id: String,
    /// Uid of its pod.
    pub pod_uid: Option<String>,
}
