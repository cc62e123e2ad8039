//! Kinds of nodes.

use super::numbered;

numbered! {
    /// The kind of a node (`enum rdma_node_type`, `rdma/ib_verbs.h`); it prints as sysfs does.
    ///
    /// ```
    /// use uverbs::NodeType;
    ///
    /// assert_eq!(NodeType::from_raw(1), NodeType::CA);
    /// assert_eq!(NodeType::RNIC.to_string(), "RNIC");
    /// ```
    #[doc(alias = "ibv_node_type")]
    #[doc(alias = "ibv_node_type_str")]
    NodeType(u8):
    CA = 1 "CA" "IBV_NODE_CA",
    SWITCH = 2 "switch" "IBV_NODE_SWITCH",
    ROUTER = 3 "router" "IBV_NODE_ROUTER",
    RNIC = 4 "RNIC" "IBV_NODE_RNIC",
    USNIC = 5 "usNIC" "IBV_NODE_USNIC",
    USNIC_UDP = 6 "usNIC UDP" "IBV_NODE_USNIC_UDP",
    UNSPECIFIED = 7 "unspecified" "IBV_NODE_UNSPECIFIED",
}
