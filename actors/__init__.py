"""What runs inside Ray actors: policy, critic, reference, reward, rollout, and what they share.

Every actor file holds a plain class; `ray.remote` is applied in `rayward.actors.group`, where it is
placed.
"""
