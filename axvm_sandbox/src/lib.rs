//! What each thread of AxVM may do, and a kernel that enforces it.
