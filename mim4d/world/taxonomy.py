"""nuScenes' categories, and what the detection benchmark makes of them."""

from __future__ import annotations

CATEGORIES: dict[str, str] = {
    "animal": "Any animal.",
    "human.pedestrian.adult": "A grown person.",
    "human.pedestrian.child": "A child.",
    "human.pedestrian.construction_worker": "A person at work on a building site.",
    "human.pedestrian.personal_mobility": "A person on a skateboard, scooter or the like.",
    "human.pedestrian.police_officer": "A police officer.",
    "human.pedestrian.stroller": "A stroller, with or without a child.",
    "human.pedestrian.wheelchair": "A wheelchair and who sits in it.",
    "movable_object.barrier": "A barrier set up to guide the traffic.",
    "movable_object.debris": "Something left on the road.",
    "movable_object.pushable_pullable": "Something one pushes or pulls: a bin, a barrow, a cart.",
    "movable_object.trafficcone": "A traffic cone.",
    "static_object.bicycle_rack": "A place for bicycles, with those in it.",
    "vehicle.bicycle": "A bicycle, with or without a rider.",
    "vehicle.bus.bendy": "A part of a bus with a joint.",
    "vehicle.bus.rigid": "A bus without a joint.",
    "vehicle.car": "A car, van or small lorry without a trailer.",
    "vehicle.construction": "A machine made for building.",
    "vehicle.emergency.ambulance": "An ambulance.",
    "vehicle.emergency.police": "A police car.",
    "vehicle.motorcycle": "A motorcycle or moped, with or without a rider.",
    "vehicle.trailer": "A trailer, with or without what pulls it.",
    "vehicle.truck": "A lorry.",
}
# category -> (class of the detection benchmark, range in metres within which it looks for the class)
DETECTION: dict[str, tuple[str, float]] = {
    "vehicle.car": ("car", 50.0),
    "vehicle.truck": ("truck", 50.0),
    "vehicle.bus.bendy": ("bus", 50.0),
    "vehicle.bus.rigid": ("bus", 50.0),
    "vehicle.trailer": ("trailer", 50.0),
    "vehicle.construction": ("construction_vehicle", 50.0),
    "human.pedestrian.adult": ("pedestrian", 40.0),
    "human.pedestrian.child": ("pedestrian", 40.0),
    "human.pedestrian.construction_worker": ("pedestrian", 40.0),
    "human.pedestrian.police_officer": ("pedestrian", 40.0),
    "vehicle.motorcycle": ("motorcycle", 40.0),
    "vehicle.bicycle": ("bicycle", 40.0),
    "movable_object.trafficcone": ("traffic_cone", 30.0),
    "movable_object.barrier": ("barrier", 30.0),
}
CLASSES = tuple(dict.fromkeys(name for name, _ in DETECTION.values()))
