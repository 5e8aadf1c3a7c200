//! VNC.
