//! The registry of owners on its public API: who reaches whose memory, by which route, and why.

mod explanations;
mod facts;
mod joining;
mod kernel_groups;
mod plain_model;
mod routes;
mod sketch;
