//! The way to the cloud: TLS for MQTT and for downloads, and the one MQTT session that all features share.

pub mod tls;
