//! The state of KVM's vCPUs moves from one VM to another, and guest code finds there what it had.

mod machine;
mod migration;
mod programs;
mod refused;
mod vcpu;
mod vm;
