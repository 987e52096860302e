<?php

return [
    'url' => env('LEARNING_GATEWAY_URL', 'http://learning-gateway:8080'),
    'token' => env('LEARNING_GATEWAY_TOKEN'),
    'timeout' => 30,
];
