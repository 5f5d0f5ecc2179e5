"""What a step consumes: plan, ramp, sample order, learning-rate scaling, schedule, random keys. No torch."""
