<?php

use App\Jobs\RegisterLearningProvider;
use App\Models\ProviderPlatform;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Route;

// The gateway met a provider id it does not know. It waits a few seconds for the details.
Route::post('/gateway/providers', static function (Request $request) {
    $asked = $request->validate(['id' => 'required|string|max:64', 'nonce' => 'required|string|max:128']);
    if (! ProviderPlatform::whereKey($asked['id'])->exists()) {
        return response()->noContent(404);
    }
    RegisterLearningProvider::dispatch($asked['id'], $asked['nonce']);

    return response()->noContent(202);
});
